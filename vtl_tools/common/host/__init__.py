"""The service's access to its host: interfaces, guards, locks, privileges."""
