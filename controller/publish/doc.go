// Package publish writes each host's document into the host's bucket, whenever what plan.Render makes of the store differs
// from what is there. It decides nothing and owns nothing else.
//
// # What it guarantees
//
//   - What a host finds in its bucket is, or soon will be, what Render says of some snapshot of the store, and in the end of the
//     newest: work that a newer snapshot has overtaken is skipped, nothing that changed is missed.
//   - A document's generation is the journal sequence of the snapshot that it was rendered from. It never goes back.
//   - Where a host, or its bucket, has a newer generation than is to be written, the journal's end decides. A generation that the
//     journal has got to was lost by the bucket only: the host is told on, under a generation beyond it. One that is beyond the journal's end
//     was lost by the journal: nothing is written, plan.Tick holds the host (resource.HostHold), and rolling it back or taking over
//     what it has is a person's decision. While a host is held nothing is written for it.
//   - An item's Rev is the generation at which its content last changed, its Cause the request that changed it. Both
//     survive the publisher: it reads the bucket before it writes for the first time.
//   - Items are written before the head that lists them, what the head no longer lists is purged after it. A publisher that dies
//     in between leaves a document that agents don't act on, and the next one completes it.
//   - Every change is in HISTORY before it is in the bucket.
//   - A host whose bucket can't be written holds up no other.
//
// It runs while its controller leads. Of two that run at once for a moment one finds that the other has written, since every write
// carries the sequence that it expects, and reads the bucket anew; the one that is behind then stops at the generation.
package publish
