"""What has outgrown the page of a numbered script: each file says which script uses it."""
