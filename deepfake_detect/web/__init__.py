"""The web page and the HTTP API of 08-web-page.py."""
