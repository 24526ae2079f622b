package api

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"shoal/controller/backup"
	"shoal/controller/resource"
)

// askTimeout bounds what a read asks of others than the store.
const askTimeout = 4 * time.Second

// SiteUsage is a thing that takes space.
type SiteUsage struct {
	What     string `json:"what"`
	About    string `json:"about"`
	Messages uint64 `json:"messages,omitempty"`
	Bytes    uint64 `json:"bytes"`
	// PerDay is by how many bytes it has grown in the last day.
	PerDay uint64 `json:"per_day,omitempty"`
	// Limit is how large it may become, Kept how long what is in it stays; empty for no limit.
	Limit uint64    `json:"limit,omitempty"`
	Kept  string    `json:"kept,omitempty"`
	First time.Time `json:"first,omitzero"`
	// Frees says what would be freed if only so much were kept.
	Frees []Frees `json:"frees,omitempty"`
	// FreesText is the same in words.
	FreesText string `json:"frees_text,omitempty"`
}

// Frees is what a retention would free.
type Frees struct {
	Keep  string `json:"keep"`
	Bytes uint64 `json:"bytes"`
}

// page makes the answer of a list of anything.
func page[T any](r resource.Reader, all []T) (Page, error) {
	p := Page{Total: len(all), Seq: r.Seq(), Items: []json.RawMessage{}}
	for _, x := range all {
		b, err := json.Marshal(x)
		if err != nil {
			return p, fmt.Errorf("encode list: %w", err)
		}
		p.Items = append(p.Items, b)
	}
	return p, nil
}

func notLeading() error {
	return &resource.Error{Code: resource.CodeNotLeader, Message: "this controller does not lead", Remedy: "ask again; the leading controller will answer"}
}

// site declares what is asked of the installation as a whole.
func site(g *Registry) {
	reads(g, Operation{
		Kind: resource.KindSite, Scope: ScopeAdmin, Verb: "list", Aliases: []string{"usage"}, Result: ResultList, Summary: "Show what takes space",
		Help: "Streams, buckets, images, the index with its checkpoints, and backups: how large they are, how fast they grow, their limits, and what would be freed if less " +
			"history were kept. " +
			"The journal is compacted by shoalctl site compact, or by the controllers' --journal-keep and --journal-max-size; documents' history goes by age and size on its own.",
		Example: "shoalctl site usage",
		Columns: []Column{
			{Title: "WHAT", Path: "what"},
			{Title: "SIZE", Path: "bytes", As: "size"},
			{Title: "PER DAY", Path: "per_day", As: "size"},
			{Title: "MESSAGES", Path: "messages"},
			{Title: "LIMIT", Path: "limit", As: "size"},
			{Title: "KEPT", Path: "kept"},
			{Title: "OLDEST", Path: "first", As: "age"},
			{Title: "WOULD BE FREED", Path: "frees_text"},
			{Title: "ABOUT", Path: "about", Wide: true},
		},
	}, func(env *Env, r resource.Reader, _ *struct{}) (any, error) {
		if env.Usage == nil {
			return nil, notLeading()
		}
		ctx, cancel := context.WithTimeout(context.Background(), askTimeout)
		defer cancel()
		all, err := env.Usage(ctx)
		if err != nil {
			return nil, err
		}
		return page(r, all)
	})
	type siteCompact struct {
		Keep string `json:"keep,omitempty" help:"how much history stays, such as 720h; all before the compaction goes where not given"`
	}
	writes(g, Operation{
		Kind: resource.KindSite, Scope: ScopeAdmin, Verb: "compact", Class: Dangerous, Task: true, Summary: "Compact the journal",
		Help: "Every resource is written into the journal once more, as it is; then what is before can go. No resource and no last version is lost, but history is: audit, " +
			"versions and past moments from before are gone for good, except in backups. With --keep only what is older goes, up to the last compaction before that.",
		Example: "shoalctl site compact --keep 2160h --wait",
	}, func(_ resource.Tx, p *siteCompact) (Outcome, error) {
		keep := time.Duration(0)
		if p.Keep != "" {
			var err error
			if keep, err = time.ParseDuration(p.Keep); err != nil || keep < 0 {
				return Outcome{}, resource.Invalid("keep", "%q is not a duration such as 720h", p.Keep)
			}
		}
		return Outcome{Subject: resource.Ref{Kind: resource.KindSite, ID: keep.String()}}, nil
	})
}

// backups declares what is asked about backups.
func backups(g *Registry) {
	columns := []Column{
		{Title: "ID", Path: "id"},
		{Title: "STATE", Path: "state"},
		{Title: "AGE", Path: "created", As: "age"},
		{Title: "SEQ", Path: "seq"},
		{Title: "SIZE", Path: "bytes", As: "size"},
		{Title: "ENCRYPTED", Path: "encrypted"},
		{Title: "VERIFIED", Path: "verified", As: "time"},
		{Title: "ERROR", Path: "error"},
		{Title: "FILE", Path: "name", Wide: true},
		{Title: "TARGET", Path: "target", Wide: true},
	}
	list := func(env *Env) ([]backup.Info, error) {
		if env.Backups == nil {
			return nil, notLeading()
		}
		return env.Backups()
	}
	reads(g, Operation{
		Kind: resource.KindBackup, Scope: ScopeAdmin, Verb: "list", Aliases: []string{"ls"}, Result: ResultList, Columns: columns, Summary: "List backups",
		Help:    "Those of this installation that are in the target of its controllers, newest first, with the one that is being made and the last that failed.",
		Example: "shoalctl backup list",
	}, func(env *Env, r resource.Reader, _ *struct{}) (any, error) {
		all, err := list(env)
		if err != nil {
			return nil, err
		}
		return page(r, all)
	})
	type backupID struct {
		ID string `json:"id" arg:"1" required:"true" help:"id of a backup, or latest"`
	}
	reads(g, Operation{
		Kind: resource.KindBackup, Scope: ScopeAdmin, Verb: "get", Aliases: []string{"show", "restore"}, Result: ResultOne, Summary: "Show a backup and how to restore it",
		Columns: []Column{{Title: "ID", Path: "id"}, {Title: "SEQ", Path: "seq"}, {Title: "RESTORE WITH", Path: "restore"}},
		Help: "A backup is restored on an empty machine, by the command that this shows: a running installation is never overwritten. Add --backup-passphrase-file or " +
			"--backup-key-file with what opens it. See README, The drill.",
		Example: "shoalctl backup restore latest",
	}, func(env *Env, _ resource.Reader, p *backupID) (any, error) {
		all, err := list(env)
		if err != nil {
			return nil, err
		}
		for _, i := range all {
			if i.State == backup.StateDone && (i.ID == p.ID || i.Name == p.ID || p.ID == "latest") {
				return i, nil
			}
		}
		return nil, resource.NotFound(resource.KindBackup, p.ID)
	})
	writes(g, Operation{
		Kind: resource.KindBackup, Scope: ScopeAdmin, Verb: "create", Task: true, Summary: "Make a backup",
		Help: "Journal and keys, consistent, into the target of the controllers (--backup-to). Work goes on meanwhile. It is read back before it counts, and the oldest go " +
			"that are more than --backup-keep.",
		Example: "shoalctl backup create --wait",
	}, func(tx resource.Tx, _ *struct{}) (Outcome, error) {
		return Outcome{Subject: resource.Ref{Kind: resource.KindBackup, ID: backup.ID(tx.Now())}}, nil
	})
	writes(g, Operation{
		Kind: resource.KindBackup, Scope: ScopeAdmin, Verb: "verify", Task: true, Summary: "Check a backup by restoring it aside",
		Help: "Every byte is held against the manifest, the streams are restored into a server of their own in a scratch directory of the leading controller, and the whole state is " +
			"rebuilt from the journal. A backup that this lets pass can be restored.",
		Example: "shoalctl backup verify latest --wait",
	}, func(_ resource.Tx, p *backupID) (Outcome, error) {
		return Outcome{Subject: resource.Ref{Kind: resource.KindBackup, ID: p.ID}}, nil
	})
}
