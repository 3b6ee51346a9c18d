"""Which bundle is in force on every replica, and what must be known before another takes its place?

Deployments stand in the ledger's database, so that they outlive a process and reach its neighbours.
"""
