// Package trace follows a call to all that it caused: its transaction, the documents that it changed, what hosts did about them,
// and how that ended, with times. It goes the other way too, from an item of a host to the call behind it.
//
// # What it guarantees
//
// Everything shown was read from the streams or is what hosts report now; nothing is inferred. Times are those of whoever was there:
// of the transaction and of its storing from the journal, of documents and reports from HISTORY, of the beginning and end of work
// from the host's own clock. What a request caused is told by its id: items and statuses bear it as their cause. So it
// works for requests long past, as far as HISTORY goes back.
//
// It does not read what it need not: the subjects that a transaction can show in are worked out from what it changed, and HISTORY is
// read under those only, from the transaction on, until everything has ended.
//
// # What it leaves to others
//
// Finding the entry of a request is [Journal]'s, which is small so that an index can take its place. Who may ask is decided before.
package trace
