"""What is written beside the npz of a case: pictures, and files in the form of what was given."""
