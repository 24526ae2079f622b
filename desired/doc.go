// Package desired is the contract between controllers and agents: what a host must be (a [Document] of [Item]s), what
// an agent reports of it ([Status], [Fault], [Inventory]), and the canonical bytes and hashes of both.
//
// A document leaves the agent no choice: paths, addresses, MACs, names of bridges and contents of chains are in it.
// It holds no secret.
//
// # On the wire
//
// One key per item in the host's bucket ("<kind>.<id>": the canonical JSON of [Item]), and one for the [Head]. Items are
// written before the head that lists them; an agent acts on a head once it holds items of exactly those hashes. JSON is
// canonical: struct order fixed by the types here, map keys sorted, no insignificant white space.
//
// # Generations and revisions
//
// Gen counts documents of a host: it is the journal sequence of the snapshot that the document was rendered from, so it
// never goes back. Rev is the journal sequence at which an item's content last changed. A status names the Rev that the
// agent acted on: a change is done when Rev is at least the change's and Phase is Ready.
//
// # Versions
//
// Controllers and agents of different versions work together. An agent refuses an item of a kind, or with a field, that it does not know
// (TooNew), and does all the others; heads and items themselves have a schema (see [DocumentSchema]), and a document of a newer one is refused
// whole. Statuses and facts are read leniently: what a controller does not know in them it ignores. Fields are never
// renamed, and what an older side does not set has a zero value that means what was before.
//
// # Removing
//
// An item that leaves the document is taken off the host, if it bears our mark. Files that hold data are the exception:
// a [Volume] that is merely absent is left alone; it is removed only while an item says Absent (a tombstone).
//
// # What a document was made from
//
// Items of the kind [KindOrigin] say what a controller that has lost everything can't tell from the others. They are of no
// account to a host: a document that differs in nothing else asks nothing of it but to be kept.
package desired
