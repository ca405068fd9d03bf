"""What runs between the edges and the rules: intake, capacity, deliveries, settlement. Decisions are the engine's, SQL the store's."""
