"""Hard tests: what a service in the open must survive, done to a real server process."""
