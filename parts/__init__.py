"""What has outgrown the page of a script: each file says which script uses it."""
