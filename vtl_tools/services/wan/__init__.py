"""vtl-wan: the wide area, emulated: delay, loss, rate and queues between two links."""
