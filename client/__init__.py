"""What runs beside the microphone: installs without the model, speaks `service.protocol` and nothing else of ours."""
