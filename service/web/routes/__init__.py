"""What does each HTTP route do? classify.py is the spine: a request from its bytes to its decision."""
