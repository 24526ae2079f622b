// Package site provides what a controller stands on: a NATS server inside of the process or connections to one outside, the
// table of streams and buckets, the leader's lease, and word of which hosts are connected.
//
// # What it guarantees
//
//   - When Open returns, the server answers, speaks a JetStream API that is new enough, and every stream and bucket of the
//     table is there with the settings that stand in it.
//
//   - An acknowledged write to the journal is on the disk: the embedded server syncs before it acknowledges. The
//     buckets that can be rebuilt (desired, observed, resources, HISTORY) give that up for speed by persist_mode async.
//
//   - Lease is an optimisation. At most one controller leads in quiet times and a killed one is replaced within
//     five seconds, but only the journal's fence keeps two leaders apart when clocks or networks fail.
//
//   - Presence tells the truth late rather than never: events come within milliseconds, and once a minute the picture is
//     put right against the servers' own lists.
//
//   - Snapshot copies the precious streams while they are written, each as it was at one moment; Config.Restore makes
//     them again where there are none, with their sequences.
//
// What the streams hold is left to journal, store and publish; who gets credentials to controller/api.
//
// # Improvement on the design page, 2026-11-23
//
//   - The bucket lease lives in memory: it holds nothing that should survive its server, and renewing costs no fsync.
//   - Buckets with persist_mode async have no atomic batches, which the server refuses together. Nothing needs them:
//     a document's items take effect with its head.
//   - HISTORY records the observed statuses of items, not each host's own, which repeats every 30 seconds.
package site
