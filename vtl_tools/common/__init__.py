"""Parts that every service is built on; imports no service."""
