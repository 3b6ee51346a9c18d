"""Several service processes behind a real proxy, with one PostgreSQL and one image store."""
