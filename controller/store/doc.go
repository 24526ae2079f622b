// Package store is the controller's database: every resource in memory, indexed, in immutable snapshots, behind the
// journal.
//
// # What it guarantees
//
// A transaction is whole or absent. [Store.Commit] runs its function on the newest state, puts it into one group with
// others that wait at the same moment, and answers once the journal has the group; nobody sees anything of it
// before. A function that returns an error leaves no trace. A request id that was committed within the last ten minutes
// is not committed again ([ErrRepeated]). Who is not up to date with the journal can't write.
//
// After every committed transaction all references (but weak ones) have their targets, and every unique key has one
// holder.
//
// [Store.View] is a snapshot that never changes, joined with what hosts and publisher reported up to that moment.
// [Store.Changes] hands over every commit in order, to slow readers several at once, and never leaves one out without
// saying so ([ErrGone]).
//
// The bucket "resources" is a projection of the journal that the leader writes behind it. It makes starting fast and
// is shown by `nats kv get`. It is checked against the journal on every start; when in doubt it is not believed, and made anew.
//
// # What it leaves to others
//
// What makes sense is decided by controller/plan inside the functions. Who leads is decided by the lease; Lead only
// fails where that was wrong. Streams and buckets are made by controller/site.
package store
