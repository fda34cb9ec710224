"""What a service needs of its host: interfaces, the guard and the lock of one, privileges."""
