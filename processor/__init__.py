"""The processor: claims predictions from the job store and runs the user's model on them, in processes of its own."""
