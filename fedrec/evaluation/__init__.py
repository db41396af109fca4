"""Pure evaluation: ranked lists in, tables out."""
