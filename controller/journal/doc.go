// Package journal keeps the truth: the stream JOURNAL, in which one message is one committed group of transactions.
//
// # What it guarantees
//
// An append is whole or absent. It carries the sequence and the identity of the message that it follows, so whoever is
// not up to date can't write ([ErrFenced]); on a cluster with replicas the sequence alone. A publish whose answer got
// lost is resolved by looking at the stream's end and by trying again under the same fence: Append returns only
// when the group is known to be stored, known not to be, or its context has ended ([ErrUnknown]).
//
// Replay and Tail hand over every message once and in order. A stream that went back (lost tail, restored backup) or
// was made anew is told as [ErrDiverged], even where its sequence has caught up in the meantime: whoever has state
// built from what is gone must build it again.
//
// # Compaction
//
// A journal that only grows would fill its disk, so its beginning can be purged: but only what is before a complete round
// of restating (store.Restate), in which every resource was said once more as it is, unchanged. Replay from anywhere before a
// round gives the whole state from the round's mark on. [Journal.Bound] tells how far back the journal goes: what is
// lost by a purge is history before Bound.First, and whole views of moments before Bound.Whole. Revisions, times and
// causes stay; sequences go on. A purge that is cut off leaves a journal that is whole all the same, and one whose beginning
// got lost in another way is noticed at once.
//
// # What it leaves to others
//
// The stream is made by controller/site from [Config]. What the changes mean is the store's affair, who may lead that
// of the lease; durability is the server's (SyncAlways).
package journal
