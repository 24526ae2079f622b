package api

import (
	"cmp"
	"context"
	"encoding/base64"
	"fmt"
	"time"

	"shoal/controller/access"
	"shoal/controller/plan"
	"shoal/controller/release"
	"shoal/controller/resource"
	"shoal/desired"
)

// Releases takes binaries of agents in, and hands them to hosts. See package release.
type Releases interface {
	Upload(sha256 string, offset uint64, part []byte) (uint64, error)
	Take(ctx context.Context, version, digest string, size uint64) (release.Signed, error)
	Part(ctx context.Context, host string, req desired.ReleaseRequest) ([]byte, error)
}

// MaxUploadPart is how many bytes of a binary one request holds at most; maxUploadRequest is such a request, whose bytes are in base64.
const (
	MaxUploadPart    = 512 << 10
	maxUploadRequest = 720 << 10
)

// UploadPart is one request of an upload.
type UploadPart struct {
	SHA256 string `json:"sha256" required:"true" help:"digest of the whole binary, in hex"`
	Offset int    `json:"offset,omitempty" help:"where the part begins"`
	Data   string `json:"data" required:"true" secret:"true" help:"the part, in base64"`
}

func releases(g *Registry) {
	readable(g, resource.KindRelease, "version=1.2.0",
		Column{Title: "VERSION", Path: "version"}, Column{Title: "ARCH", Path: "arch"}, Column{Title: "SIZE", Path: "bytes", As: "size"},
		Column{Title: "HOSTS", Path: "status.hosts"}, Column{Title: "RUNNING", Path: "status.running"}, Column{Title: "FAILED", Path: "status.failed"},
		Column{Title: "ROLLOUT", Path: "status.rollout"}, Column{Title: "WHY", Path: "status.why"}, Column{Title: "SHA256", Path: "sha256", Wide: true}, age(), idColumn())
	type releaseCreate struct {
		Version     string   `json:"version" required:"true" help:"what the binary says of itself with --version"`
		SHA256      string   `json:"sha256" required:"true" help:"digest of the binary, in hex"`
		Bytes       int      `json:"bytes" required:"true" help:"length of the binary"`
		Description string   `json:"description,omitempty" help:"free text, up to 2048 bytes"`
		Tags        []string `json:"tags,omitempty" flag:"tag" help:"tag, free text or namespace::key::value"`
	}
	serves(g, Operation{
		Kind: resource.KindRelease, Verb: "upload", Scope: ScopeAdmin, Summary: "Send a part of a binary of the agent", maxBytes: maxUploadRequest,
		Help: "Parts come in order. What was sent is of use for the next release.create only; shoalctl agent release add does both.", Example: "shoalctl agent release add bin/shoal-agent",
	}, func(s *Service, _ context.Context, in served, p *UploadPart) (*Reply, error) {
		if s.cfg.Env.Releases == nil {
			return nil, noReleases()
		}
		if err := desired.CheckSHA256(p.SHA256); err != nil {
			return nil, resource.Invalid("sha256", "%v", err)
		}
		part, err := base64.StdEncoding.Strict().DecodeString(p.Data)
		if err != nil || len(part) == 0 || len(part) > MaxUploadPart {
			return nil, resource.Invalid("data", "is not 1 to %d bytes in base64", MaxUploadPart)
		}
		if p.Offset < 0 {
			return nil, resource.Invalid("offset", "%d is negative", p.Offset)
		}
		if in.dry {
			return &Reply{Request: in.req.ID, DryRun: true}, nil
		}
		if _, err := s.cfg.Env.Releases.Upload(p.SHA256, uint64(p.Offset), part); err != nil {
			return nil, err
		}
		return &Reply{Request: in.req.ID}, nil
	})
	writesPrepared(g, Operation{
		Kind: resource.KindRelease, Verb: "create", Aliases: []string{"add"}, Summary: "Add a release of the agent",
		Help: "The binary was sent before. It is looked into: only a shoal-agent for Linux is taken, and for the architecture that it was built for. It is signed with the key that signs " +
			"the credentials of hosts, which check that. Nothing is told to any host: see shoalctl agent rollout start.",
		Example: "shoalctl agent release add bin/shoal-agent --version 1.2.0",
	}, func(ctx context.Context, env *Env, _ resource.Reader, _ access.Principal, p *releaseCreate) (release.Signed, error) {
		switch err := desired.CheckVersion(p.Version); {
		case env.Releases == nil:
			return release.Signed{}, noReleases()
		case err != nil:
			return release.Signed{}, resource.Invalid("version", "%v", err)
		case p.Bytes < 1:
			return release.Signed{}, resource.Invalid("bytes", "%d is not the length of a binary", p.Bytes)
		}
		if err := desired.CheckSHA256(p.SHA256); err != nil {
			return release.Signed{}, resource.Invalid("sha256", "%v", err)
		}
		return env.Releases.Take(ctx, p.Version, p.SHA256, uint64(p.Bytes))
	}, func(tx resource.Tx, p *releaseCreate, signed release.Signed) (Outcome, error) {
		return did(plan.AddRelease(tx, &resource.Release{
			Meta:    resource.Meta{Name: p.Version, Description: p.Description, Tags: p.Tags, Owner: tx.Request().Owner()},
			Version: p.Version, Arch: signed.Arch, SHA256: p.SHA256, Bytes: uint64(p.Bytes), Signature: signed.Signature,
		}))
	})
	deletable(g, resource.KindRelease, "Refused while hosts are to run it.")
	rollouts(g)
}

func noReleases() error {
	return &resource.Error{Code: resource.CodeInternal, Message: "this controller keeps no releases", Remedy: "ask one that was started with a data directory"}
}

func rollouts(g *Registry) {
	readable(g, resource.KindRollout, "state=running",
		Column{Title: "VERSION", Path: "version"}, Column{Title: "STATE", Path: "state"}, Column{Title: "WAVE", Path: "wave"}, Column{Title: "DONE", Path: "status.done"},
		Column{Title: "OF", Path: "status.targets"}, Column{Title: "WORKING", Path: "status.working"}, Column{Title: "FAILED", Path: "status.failed"},
		Column{Title: "OFFLINE", Path: "status.offline"}, Column{Title: "WHY", Path: "why"}, Column{Title: "HOSTS", Path: "status.wave", Wide: true},
		Column{Title: "CLUSTERS", Path: "names.cluster_ids", Wide: true}, age(), idColumn())
	type rolloutStart struct {
		Version  string    `json:"version" arg:"1" required:"true" help:"version of the releases; each host gets the one for its architecture"`
		Cluster  []string  `json:"clusters,omitempty" flag:"cluster" ref:"cluster" help:"cluster whose hosts get it; all where none is given"`
		Clusters int       `json:"wave_clusters,omitempty" help:"in how many clusters a wave has hosts (2)"`
		Hosts    int       `json:"wave_hosts,omitempty" help:"how many hosts of each a wave has (2)"`
		Soak     *duration `json:"soak,omitempty" help:"how long all hosts of a wave must be well before the next (1m)"`
		Within   *duration `json:"within,omitempty" help:"how long a wave may take to be well before the rollout stops (15m)"`
		Trial    *duration `json:"trial,omitempty" help:"how long a new agent may take to be well before its host goes back to the one before (3m)"`
	}
	writes(g, Operation{
		Kind: resource.KindRollout, Verb: "create", Aliases: []string{"start"}, Paths: []string{"agent rollout start"}, Summary: "Bring a release of the agent to hosts",
		Help: "Hosts get it in waves. Each fetches it, checks its signature, starts it, and keeps it if it connects and everything on the host is as well as before; otherwise the host goes " +
			"back by itself, and the rollout stops and says why. The next wave begins when all hosts of the last have been well for a while. Hosts that are not connected get it when they " +
			"return, for as long as the rollout is not over. Guests, DHCP and packet filters are not touched. A rollout of an older version goes back to it.",
		Example: "shoalctl agent rollout start 1.2.0\nshoalctl agent rollout start 1.2.0 --cluster c1 --wave-hosts 10 --soak 10m",
	}, func(tx resource.Tx, p *rolloutStart) (Outcome, error) {
		o := &resource.Rollout{
			Meta: resource.Meta{Name: p.Version, Owner: tx.Request().Owner()}, Version: p.Version, ClusterIDs: p.Cluster,
			Clusters: cmp.Or(p.Clusters, resource.RolloutClusters), Hosts: cmp.Or(p.Hosts, resource.RolloutHosts),
		}
		for _, d := range []struct {
			field string
			into  *int
			given *duration
			def   time.Duration
		}{
			{"soak", &o.SoakSeconds, p.Soak, resource.RolloutSoak},
			{"within", &o.WithinSeconds, p.Within, resource.RolloutWithin},
			{"trial", &o.TrialSeconds, p.Trial, resource.RolloutTrial},
		} {
			v := d.def
			if d.given != nil {
				v = time.Duration(*d.given)
			}
			if v%time.Second != 0 {
				return Outcome{}, resource.Invalid(d.field, "%v is not a whole number of seconds", v)
			}
			*d.into = int(v / time.Second)
		}
		return did(plan.StartRollout(tx, o))
	})
	for _, v := range []struct {
		verb, summary, help string
		do                  func(tx resource.Tx, id string) (*resource.Rollout, error)
	}{
		{"pause", "Pause a rollout", "Hosts that were told finish, or go back by themselves; no more are told.", plan.PauseRollout},
		{"resume", "Go on with a rollout", "One that was stopped begins with the hosts that could not have the release: they try again.", plan.ResumeRollout},
	} {
		writes(g, Operation{
			Kind: resource.KindRollout, Verb: v.verb, Summary: v.summary, Help: v.help, Example: "shoalctl agent rollout " + v.verb + " 1.2.0",
		}, func(tx resource.Tx, p *getParams) (Outcome, error) {
			id, err := openRollout(tx, p.ID)
			if err != nil {
				return Outcome{}, err
			}
			return did(v.do(tx, id))
		})
	}
	deletable(g, resource.KindRollout, "Hosts keep what they were told.")
}

// openRollout finds a rollout by its version, of which others may be over, or by its id.
func openRollout(r resource.Reader, ref string) (string, error) {
	if o, ok := r.Holder(resource.RolloutKey).(*resource.Rollout); ok && o.Version == ref {
		return o.ID, nil
	}
	return lookup(r, "id", resource.KindRollout, ref)
}

// answerRelease answers an agent that asks for a part of its release.
func (s *Service) answerRelease(ctx context.Context, host string, _ requestInfo, body []byte) ([]byte, error) {
	p, err := agentRequest[desired.ReleaseRequest](body)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	part, err := s.cfg.Env.Releases.Part(ctx, host, p)
	if err != nil {
		return nil, fmt.Errorf("get a part of release %s: %w", p.Release, err)
	}
	return part, nil
}
