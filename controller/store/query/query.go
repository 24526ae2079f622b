// Package query selects resources by their attributes, by those of related resources and by their status.
package query
