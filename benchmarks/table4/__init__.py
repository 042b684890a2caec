"""Table 4: how long each method takes for the paper's 14 cases, on the machine this runs on."""
