"""Sets of the Hugging Face hub, and folders that its library reads."""
