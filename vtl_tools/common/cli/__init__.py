"""The frame of a command: options, parameter types, tables, and errors as lines and exit statuses."""
