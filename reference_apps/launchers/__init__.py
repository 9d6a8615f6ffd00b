"""Ways to start the processes of a stage and to be sure that they end."""
