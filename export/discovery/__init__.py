"""Finding out what a module carries by running it: calls, rates, the initial state, and what is refused."""
