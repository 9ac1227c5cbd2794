"""What Compare and Sweep share: the list of runs as data, the table that shows it, and the plots of its numbers."""
