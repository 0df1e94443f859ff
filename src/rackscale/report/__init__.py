"""What people look at: sentences, tables and pictures made from states, plans and events."""
