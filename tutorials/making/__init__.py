"""What runs the chapters' blocks, writes their outputs and figures, and checks the numbers in their prose."""
