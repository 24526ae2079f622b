package agent_test

import (
	"bytes"
	"context"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"github.com/rs/zerolog"

	"shoal/agent"
	"shoal/agent/ledger"
	"shoal/agent/sim/netbox"
	"shoal/desired"
)

func TestMain(m *testing.M) { netbox.Main(m) }

const (
	hostID = "7c1e7f5e-0000-4000-8000-000000000001"
	poolID = "7c1e7f5e-0000-4000-8000-000000000002"
	l3ID   = "7c1e7f5e-0000-4000-8000-000000000003"
	l2ID   = "7c1e7f5e-0000-4000-8000-000000000004"
	volID  = "7c1e7f5e-0000-4000-8000-000000000005"
)

func credsFile(t *testing.T) string {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	user, err := nkeys.CreateUser()
	must(err)
	account, err := nkeys.CreateAccount()
	must(err)
	pub, err := user.PublicKey()
	must(err)
	claims := jwt.NewUserClaims(pub)
	claims.Name = hostID
	token, err := claims.Encode(account)
	must(err)
	seed, err := user.Seed()
	must(err)
	b, err := jwt.FormatUserConfig(token, seed)
	must(err)
	path := filepath.Join(t.TempDir(), "agent.creds")
	must(os.WriteFile(path, b, 0o600))
	return path
}

// run is an agent without a controller and without libvirt, until ok is true.
func run(t *testing.T, data string, log *bytes.Buffer, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	creds := credsFile(t)
	go func() {
		done <- agent.Run(ctx, agent.Config{
			NATSURL: "nats://127.0.0.1:1", Creds: creds, Data: data, Libvirt: filepath.Join(filepath.Dir(data), "none"), Version: "test",
			Log: zerolog.New(zerolog.SyncWriter(log)),
		})
	}()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("waited in vain: %s", what)
			break
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
	if t.Failed() {
		t.Fatalf("log:\n%s", log)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// TestDataDirectory has an agent make its directory and work from its ledger: DHCP servers get at their files as nobody, and
// nobody gets at anything else.
func TestDataDirectory(t *testing.T) {
	netbox.Need(t, "ip", "ebtables", "dnsmasq", "qemu-img", "qemu-system-x86_64", "nsenter")
	top := t.TempDir()
	if err := os.Chmod(filepath.Dir(top), 0o755); err != nil {
		t.Fatal(err)
	}
	data, pool := filepath.Join(top, "data"), filepath.Join(top, "pool")
	netbox.Run(t, "mkdir "+pool+"\nip link add br0 type bridge\nip link set br0 up")
	t.Cleanup(func() {
		netbox.Try("for p in $(pgrep -x dnsmasq); do kill -9 $p; done") // this pid namespace is the test's own
		netbox.Try("ip netns del shoal-" + l3ID)
		netbox.Try("ip link del br0")
		netbox.Try("ebtables -F; ebtables -X")
	})
	var log bytes.Buffer
	// A service manager's umask may be strict.
	old := syscall.Umask(0o077)
	run(t, data, &log, "what the host can do is known", func() bool { return exists(filepath.Join(data, "virt.json")) })
	syscall.Umask(old)
	if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o711 {
		t.Fatalf("data directory: %v %v", info, err)
	}

	doc := desired.Document{Head: desired.Head{Host: hostID, Gen: 7, Items: map[desired.Ref]string{}}, Items: map[desired.Ref]desired.Item{}}
	volume := pool + "/volumes/" + volID + ".qcow2"
	ref := func(k desired.Kind, id string) desired.Ref { return desired.Ref{Kind: k, ID: id} }
	for _, i := range []struct {
		ref   desired.Ref
		spec  any
		needs []desired.Ref
	}{
		{ref(desired.KindPool, poolID), &desired.Pool{Type: desired.PoolLocal, Path: pool}, nil},
		{
			ref(desired.KindVolume, volID), &desired.Volume{Pool: poolID, Path: volume, Format: desired.FormatQCOW2, Bytes: 1 << 20},
			[]desired.Ref{ref(desired.KindPool, poolID)},
		},
		{ref(desired.KindNetDev, l2ID), &desired.NetDev{Type: desired.NetDevExisting, Bridge: "br0"}, nil},
		{
			ref(desired.KindDHCP, l3ID),
			&desired.DHCP{
				Bridge: "br0", Namespace: "shoal-" + l3ID, Port: "shd7c1e7f5e0000", Server: netip.MustParsePrefix("10.5.0.2/24"),
				Entries: []desired.DHCPEntry{{MAC: "52:54:00:05:00:01", IP: netip.MustParseAddr("10.5.0.11")}},
			},
			[]desired.Ref{ref(desired.KindNetDev, l2ID)},
		},
	} {
		it, err := desired.NewItem(i.ref.Kind, i.ref.ID, i.spec, i.needs...)
		if err != nil {
			t.Fatal(err)
		}
		it.Rev = 7
		b, err := it.Encode()
		if err != nil {
			t.Fatal(err)
		}
		doc.Items[i.ref], doc.Head.Items[i.ref] = it, desired.Hash(b)
	}
	book, err := ledger.Open(filepath.Join(data, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	if err := book.Accept(doc); err != nil {
		t.Fatal(err)
	}
	if err := book.Close(); err != nil {
		t.Fatal(err)
	}
	run(t, data, &log, "the document is in force", func() bool {
		return exists(volume) && exists(filepath.Join(data, "volumes", volID+".json")) && exists(filepath.Join(data, "dhcp", l3ID, "loaded"))
	})
	// The owner of /proc/<pid> is not its user: that of a process that changed its user is root.
	user := func() string {
		out, _ := netbox.Try("ps -o user= -p $(cat " + filepath.Join(data, "dhcp", l3ID, "pid") + ")")
		return strings.TrimSpace(out)
	}
	if got := user(); got != "nobody" {
		t.Errorf("the DHCP server runs as %q", got)
	}
	if strings.Contains(log.String(), "chmod") {
		t.Errorf("the agent warns of its own directory:\n%s", log.String())
	}
	files := 0
	err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(data, "dhcp") {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil || d.IsDir() {
			return err
		}
		files++
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is %s", path, info.Mode())
		}
		return nil
	})
	if err != nil || files < 4 {
		t.Errorf("%d files: %v", files, err)
	}

	// A directory that the operator closed stays closed, and the agent says what that means.
	if err := os.Chmod(data, 0o700); err != nil {
		t.Fatal(err)
	}
	log.Reset()
	run(t, data, &log, "the server runs as root", func() bool { return user() == "root" })
	if s := log.String(); !strings.Contains(s, "chmod o+x") || !strings.Contains(s, `"dir":"`+data+`"`) {
		t.Errorf("no warning:\n%s", s)
	}
	if info, err := os.Stat(data); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data directory: %v %v", info, err)
	}
}
