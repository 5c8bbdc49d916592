"""The Python client of Quittance: tasks, agents and accounts over HTTP, for threads and for asyncio."""
