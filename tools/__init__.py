"""Tools of the project: train, quantise, evaluate, simulate, demonstrate, benchmark, torture."""
