"""What commands share: options, parameter types, tables, and errors as lines and exit statuses."""
