"""Decisions: pure functions of plain numbers, called by the simulator and by the running stack alike."""
