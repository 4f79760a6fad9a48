"""Model repositories of the Hugging Face hub: listing, memory estimates and downloads."""
