"""Results for people: tables, drawings, pages."""
