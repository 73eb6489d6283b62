// Package registry keeps models under names in a folder: what is there, is
// whole, whatever happens while it is written. It knows files and names, not
// HTTP, and it runs no model.
package registry
