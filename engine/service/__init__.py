"""The background service: the queue, a worker process for each run, commands, and the machine's figures."""
