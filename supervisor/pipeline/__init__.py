"""Pure domain of the line: definition, graph, events, budget, machine; no input or output."""
