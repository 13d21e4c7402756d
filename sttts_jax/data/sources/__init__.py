"""Where records come from: procedurally made data, TFDS datasets on disk, jsonl files of your own."""
