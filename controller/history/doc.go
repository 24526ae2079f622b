// Package history is the time machine: it finds what was asked and done at any time, and shows the state of any moment.
//
// # What it guarantees
//
// The truth stays in the streams JOURNAL and HISTORY. What this package keeps in its directory makes them quick to search,
// and is made again from them where it is missing, damaged, or of another journal; nothing is believed without its
// checksum. Every controller keeps its own, stand-by or not.
//
//   - The index has a row for every entry of the journal: which call, whose, from where, when, about what, and how it ended.
//     Rows lie in segments, column by column, and are searched by reading the columns that are asked for. A
//     segment is immutable; rows that fill none yet are in memory, and are read from the journal again after a start.
//   - A checkpoint is the whole state after one message, with what hosts had reported then. [History.At] gives a
//     resource.Reader of any moment: the checkpoint before it, and the journal and HISTORY from there on. Checkpoints are
//     written so close to each other that this takes about as long as reading one of them. Older ones are thinned out, to one an
//     hour after a day, one a day after a week, one a month after a quarter; moments between them take longer to read.
//   - What hosts had reported at a moment is what HISTORY has up to then. Where HISTORY does not reach back that far (it
//     is limited by age and size), the newest older checkpoint that is kept speaks, or nobody: then VMs show as Unknown.
//   - A document of the past is rendered from the journal, with the revisions that HISTORY has, and is compared with the
//     hashes of the head that the host got.
//
// # What it leaves to others
//
// Who may see what: every function that lists takes a predicate. What the journal does not hold can't be found: calls are
// recorded by controller/store, in the order in which they were stored, and [Recorder] sees to it that refused ones
// are, without letting anybody flood the journal.
package history
