package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"shoal/subjects"
)

// everything is the id and revision of every resource, to see that a refusal left nothing behind. Tasks are records of
// what was asked, also of what failed.
func (b *bed) everything(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, kind := range []string{
		"zone", "cluster", "host", "storage", "image", "offering", "diskoffering", "vxlanpool", "l2", "l3", "iprange", "secgroup", "secrule",
		"vm", "nic", "volume",
	} {
		var list []struct {
			ID  string
			Rev uint64
		}
		b.get(t, &list, "%s list --limit 1000", kind)
		for _, r := range list {
			fmt.Fprintln(&all, kind, r.ID, r.Rev)
		}
	}
	return all.String()
}

// TestBadInput_IsRefusedAndLeavesNothing: each refusal names what is wrong.
func TestBadInput_IsRefusedAndLeavesNothing(t *testing.T) {
	b := theBed(t)
	b.ctl(t, "l2 create bad-l2 --zone z1 --type vxlan --pool vx")
	b.ctl(t, "l3 create bad-net --l2 bad-l2 --category private")
	b.ctl(t, "iprange create bad-range --network bad-net --start 10.9.0.10 --end 10.9.0.11 --prefix 24 --gateway 10.9.0.1")
	t.Cleanup(func() { _, _ = b.try("l2", "delete", "bad-l2", "--cascade") })
	before := b.everything(t)
	for _, c := range []struct{ line, names string }{
		{"zone create " + strings.Repeat("x", 129), "name"},
		{"zone create z1 --colour red", "colour"},
		{"vm create bad --image tiny --offering tiny --network nonesuch", "nonesuch"},
		{"vm create bad --image nonesuch --offering tiny --network net1", "nonesuch"},
		{"vm create bad --image tiny --offering tiny --network net1,ip=10.1.0.300", "ip"},
		{"vm create bad --image tiny --offering tiny --network net1,ip=10.1.0.1", "ip"},
		{"vm create bad --image tiny --offering tiny --network net1 --host nonesuch", "nonesuch"},
		{"vm create bad --image tiny --cpu 1 --memory 999GiB --network net1", "memory"},
		{"vm create bad --image tiny --offering tiny --network bad-net --count 5", "address"},
		{"vm create bad --image tiny --offering tiny --network net1 --root-size 900TiB", "root"},
		{"vm create bad --image tiny --offering tiny --network net1 --root-size 60TiB", "storage"},
		{"iprange create bad --network bad-net --start 10.9.0.11 --end 10.9.0.20 --prefix 24 --gateway 10.9.0.1", "overlap"},
		{"iprange create bad --network bad-net --start 10.9.0.20 --end 10.9.0.12 --prefix 24 --gateway 10.9.0.1", "end"},
		{"l2 create bad --zone z1 --type vxlan --pool vx --vni 5000", "vni"},
		{"l2 create bad --zone z1 --type novlan --device name-that-is-far-too-long", "device"},
		{"storage create bad --zone z1 --type local --path /etc/shoal --cluster c1", "path"},
		{"storage create bad --zone z1 --type nfs --source nowhere --cluster c1", "source"},
		{"secrule create --secgroup nonesuch --direction ingress --protocol tcp", "nonesuch"},
		{"volume create bad --size 1YiB --zone z1", "size"},
		{"offering create bad --cpu 0 --memory 128MiB", "cpu"},
	} {
		e := b.refused(t, "%s", c.line)
		if !strings.Contains(strings.ToLower(e.stderr), c.names) {
			t.Errorf("shoalctl %s says %q, want it to name %q", c.line, e.stderr, c.names)
		}
		if after := b.everything(t); after != before {
			t.Fatalf("shoalctl %s left something:\nbefore:\n%s\nafter:\n%s", c.line, before, after)
		}
	}
}

// inFabric runs f on a thread in the fabric's network namespace.
func (b *bed) inFabric(f func() error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		if err := setns("/run/netns/" + b.prefix + "-fab"); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// TestImage_BadSources: missing, wrong, cut; the image is gone afterwards and the error says why. And good over HTTP.
func TestImage_BadSources(t *testing.T) {
	b := theBed(t)
	content, err := os.ReadFile(filepath.Join(repo, ".cache/guest/tiny.qcow2"))
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/good", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "tiny.qcow2", time.Time{}, strings.NewReader(string(content)))
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(content)))
		_, _ = w.Write(content[:len(content)/2])
	})
	var listener net.Listener
	if err := b.inFabric(func() (err error) {
		listener, err = net.Listen("tcp", b.net+".1:8099")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
	url := "http://" + b.net + ".1:8099"

	sum := sha256.Sum256(content)
	before := b.everything(t)
	for _, c := range []struct{ flags, says string }{
		{"--url " + url + "/nonesuch", "404"},
		{"--url file:///nonesuch", "nonesuch"},
		{"--url ftp://nonesuch", "url"},
		{"--url http://" + b.net + ".1:8098/closed", "refused"},
		{"--url " + url + "/cut", "cut"},
		{"--url " + url + "/good --checksum sha256:" + strings.Repeat("0", 64), "checksum"},
	} {
		e := b.refused(t, "image add bad %s --wait", c.flags)
		if !strings.Contains(strings.ToLower(e.stderr), c.says) {
			t.Errorf("image add %s says %q, want it to name %q", c.flags, e.stderr, c.says)
		}
		if after := b.everything(t); after != before {
			t.Fatalf("image add %s left something:\nbefore:\n%s\nafter:\n%s", c.flags, before, after)
		}
	}
	b.ctl(t, "image add http-tiny --url %s/good --checksum sha256:%s --wait", url, hex.EncodeToString(sum[:]))
	t.Cleanup(func() { _, _ = b.try("image", "delete", "http-tiny") })
	var image struct {
		Format       string
		VirtualBytes uint64 `json:"virtual_bytes"`
	}
	b.get(t, &image, "image get http-tiny")
	if image.Format != "qcow2" || image.VirtualBytes != 32<<20 {
		t.Errorf("image: %+v, want qcow2 of 32 MiB", image)
	}
	if files, _ := filepath.Glob(filepath.Join(b.dir, "controller/images/*.part")); len(files) > 0 {
		t.Errorf("half downloads are left: %v", files)
	}
}

// TestStorage_UnreachableIsSaid: an NFS server that is not there, and a mount point that is none.
func TestStorage_UnreachableIsSaid(t *testing.T) {
	b := theBed(t)
	for _, c := range []struct{ name, flags, says string }{
		{"away", "--type nfs --source " + b.net + ".99:/export", b.net + ".99"},
		{"nomount", "--type sharedmount --path /srv/nomount", "mount"},
	} {
		b.ctl(t, "storage create %s --zone z1 %s --cluster c1", c.name, c.flags)
		t.Cleanup(func() { _, _ = b.try("storage", "delete", c.name, "--cascade") })
		eventually(t, 90*time.Second, func() error {
			var s struct {
				Status struct {
					State string
					Fault *struct{ Code, Message, Remedy string }
				}
			}
			if err := b.tryJSON(&s, "storage", "get", c.name); err != nil {
				return err
			}
			if f := s.Status.Fault; f == nil || f.Remedy == "" || !strings.Contains(strings.ToLower(f.Message), c.says) {
				return fmt.Errorf("storage %s is %s with fault %+v, want one that names %q and a remedy", c.name, s.Status.State, f, c.says)
			}
			return nil
		})
		e := b.refused(t, "vm create bad --image tiny --offering tiny --network net1 --storage %s", c.name)
		if !strings.Contains(e.stderr, c.name) {
			t.Errorf("a VM on storage %s is refused with %q, which does not name it", c.name, e.stderr)
		}
	}
}

// TestNATS_ReadableWithThePlainCLI: the nats CLI shows documents and statuses, and may not write.
func TestNATS_ReadableWithThePlainCLI(t *testing.T) {
	b := theBed(t)
	cli := filepath.Join(repo, ".cache/bin/nats")
	if _, err := os.Stat(cli); err != nil {
		t.Fatalf("the nats CLI is missing: run ./scripts/task test-e2e, which builds it (%v)", err)
	}
	v := b.createVM(t, "cli", "--diskless --offering micro --network net1 --host h1")
	as := func(creds, inbox string, args ...string) (string, error) {
		line := append([]string{
			cli, "-s", "tls://" + b.net + ".1:4222", "--tlsca", b.ca(), "--creds", creds, "--no-context", "--timeout", "5s", "--inbox-prefix", subjects.Inbox(inbox),
		}, args...)
		if args[1] == "view" { // pages only on a terminal
			line = []string{"script", "-qec", strings.Join(line, " "), "/dev/null"}
		}
		cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + b.prefix + "-fab"}, line...)...)
		cmd.Env = append(os.Environ(), "HOME="+b.dir)
		return run(cmd)
	}
	nats := func(args ...string) (string, error) {
		return as(filepath.Join(b.dir, "controller/admin.creds"), "admin", args...)
	}
	out, err := nats("kv", "get", subjects.DesiredBucket(v.HostID), subjects.ItemKey("domain", v.ID), "--raw")
	if err != nil {
		t.Fatal(err)
	}
	var item struct{ Kind, ID string }
	if err := json.Unmarshal([]byte(out), &item); err != nil || item.Kind != "domain" || item.ID != v.ID {
		t.Errorf("the document item reads %q (%v)", out, err)
	}
	if out, err = nats("kv", "get", subjects.ObservedBucket, subjects.ObservedKey(v.HostID, "domain", v.ID), "--raw"); err != nil || !strings.Contains(out, `"Ready"`) {
		t.Errorf("the status reads %q (%v), want Ready", out, err)
	}
	if out, err = nats("req", subjects.API("admin", "vm", "get"), `{"id":"cli"}`, "--raw"); err != nil || !strings.Contains(out, v.ID) {
		t.Errorf("a request by the nats CLI answers %q (%v)", out, err)
	}
	if out, err = nats("micro", "info", "shoal"); err != nil || !strings.Contains(out, "vm") {
		t.Errorf("nats micro info says %q (%v)", out, err)
	}
	if _, err = nats("kv", "put", subjects.DesiredBucket(v.HostID), "domain.x", "evil"); err == nil {
		t.Error("an administrator of the API could write a host's document")
	}

	look := filepath.Join(t.TempDir(), "look.creds")
	if out, err = b.tryProgram("shoal-controller", "creds", "--identity", filepath.Join(b.dir, "controller/identity"), "--role", "inspector", "--name", "look", "--ttl", "1h", "--out", look); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	inspect := func(args ...string) (string, error) { return as(look, subjects.InspectorInbox+"look", args...) }
	// From where less than a page follows: it asks before it goes on to the next.
	var made []struct{ Seq uint64 }
	if err = b.tryJSON(&made, "audit", "list", "--op", "vm.create", "--limit", "1"); err != nil || len(made) != 1 {
		t.Fatalf("audit list says %v (%v)", made, err)
	}
	for stream, from := range map[string][]string{
		subjects.JournalStream: {"--id", strconv.FormatUint(made[0].Seq, 10)}, subjects.HistoryStream: {"--subject", subjects.HistorySubject(v.HostID, subjects.ItemKey("domain", v.ID))},
	} {
		out, err = inspect(append([]string{"stream", "view", stream, "25", "--raw"}, from...)...)
		if err != nil || !strings.Contains(out, v.ID) || strings.Contains(out, "ermissions") {
			t.Errorf("nats stream view %s says %.2000q (%v), want something of VM %s", stream, out, err, v.ID)
		}
	}
	if out, err = inspect("kv", "ls", subjects.DesiredBucket(v.HostID)); err != nil || !strings.Contains(out, "domain."+v.ID) {
		t.Errorf("nats kv ls says %q (%v)", out, err)
	}
	for _, write := range [][]string{{"kv", "put", subjects.DesiredBucket(v.HostID), "domain.x", "evil"}, {"pub", subjects.JournalSubject, "evil", "--jetstream"}, {"stream", "purge", subjects.JournalStream, "-f"}} {
		if out, err = inspect(write...); err == nil {
			t.Errorf("an inspector could nats %s: %s", strings.Join(write, " "), out)
		}
	}
	// Should it delete consumers that are not its own, whoever has them makes them again.
	names, err := inspect("consumer", "ls", "KV_"+subjects.ObservedBucket, "--names")
	if err != nil || strings.TrimSpace(names) == "" {
		t.Fatalf("nats consumer ls says %q (%v)", names, err)
	}
	for name := range strings.FieldsSeq(names) {
		if out, err = inspect("consumer", "rm", "KV_"+subjects.ObservedBucket, name, "-f"); err != nil {
			t.Errorf("nats consumer rm says %q (%v)", out, err)
		}
	}
	b.createVM(t, "cli2", "--diskless --offering micro --network net1 --host h1") // waits for what its host reports
}
