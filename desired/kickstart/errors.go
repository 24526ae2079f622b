package kickstart

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Pos is a line of a file, counted from 1.
type Pos struct {
	File string
	Line int
}

// String is file:line, or the file alone where no line is meant.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// Error is one thing that is wrong with a kickstart file, or that the machine at hand can't fulfil.
type Error struct {
	At      Pos
	Message string
	// Remedy is the next step, empty when the message says it all.
	Remedy string
}

// Error is "file:line: message; remedy".
func (e *Error) Error() string {
	s := e.Message
	if e.At.File != "" {
		s = e.At.String() + ": " + s
	}
	if e.Remedy != "" {
		s += "; " + e.Remedy
	}
	return s
}

// Errors is everything that is wrong, in the order of the lines.
type Errors []*Error

// Error has one line for each.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, one := range e {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// orNil makes an empty list no error, and sorts the others by file and line.
func (e Errors) orNil() error {
	if len(e) == 0 {
		return nil
	}
	slices.SortStableFunc(e, func(a, b *Error) int {
		return cmp.Or(strings.Compare(a.At.File, b.At.File), cmp.Compare(a.At.Line, b.At.Line))
	})
	return e
}

// Note is something that was read and is left out, with the reason.
type Note struct {
	At   Pos
	Text string
}

// String is "file:line: text".
func (n Note) String() string { return n.At.String() + ": " + n.Text }
