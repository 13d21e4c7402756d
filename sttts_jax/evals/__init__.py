"""Running a checkpoint: generation, benchmark tasks, results and the pages that show them."""
