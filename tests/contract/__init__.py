"""Hard cases expressed on the objective contract, each against an independent float64 calculation."""
