package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"shoal/controller/iso"
	"shoal/controller/iso/anaconda"
	"shoal/desired"
	"shoal/desired/kickstart"
)

// defaultImage is where the installation image is looked for.
const defaultImage = "/usr/share/shoal/install.iso"

// isoCommand makes installation media. It talks to no controller.
func (a *App) isoCommand() *cobra.Command {
	parent := group("iso", "Make media that install hosts by themselves")
	parent.AddCommand(a.isoBuildCommand(), a.isoCheckCommand())
	return parent
}

func (a *App) isoBuildCommand() *cobra.Command {
	var (
		r                                                iso.Recipe
		req                                              iso.Request
		mode, file, image, out, pxe, hashFile, tokenFile string
		vendor                                           vendorFlags
		keyFiles                                         []string
	)
	cmd := &cobra.Command{
		Use: "build --mode MODE -o host.iso", Short: "Write an installation medium for CD, stick and virtual media, or for a network start", Args: cobra.NoArgs,
		Long: `Write an installation medium: started on a bare machine, by BIOS or UEFI, it installs a host unattended and offline, and the host enrols itself with
the token. What it is about to do, and what went wrong, is on the screen and on the serial console (115200 baud).

A disk that holds data is left alone unless --erase (or clearpart in the kickstart) says that it may be lost. A disk is named by its kernel name, by a path
below /dev (wildcards allowed), by serial= (its end is enough), path= (as below /dev/disk/by-path) or by size>=, the smallest that is large enough; two disks become
a mirror. Without --disk the machine must have one disk only.

With --kickstart all that the flags from --disk to --arg say is said by that file instead, in the language of Anaconda; it and the files that it
includes are checked here as the installer checks them. Files below /tmp may be written by its %pre.

The installation image is made by ./scripts/task iso-image in the source tree. The medium holds the token: keep it safe.

With --base the medium is a vendor's instead, a DVD of RHEL, AlmaLinux, Rocky Linux, CentOS or Oracle Linux 7 to 10 for x86_64, with the kickstart, Shoal's programs and
the packages of --packages added. Anaconda installs from it, by the same kickstart in the words of that release; how the medium starts, its label and its
self-check stay. This needs xorriso, mtools, dosfstools and isomd5sum, and createrepo_c for --packages.`,
		Example: `  shoalctl host token create --cluster c1 --approve manual --ttl 24h -q >join.token
  shoalctl iso build --mode compute --token-file join.token --disk serial=S3Z8NB0K --erase --ssh-key ~/.ssh/id_ed25519.pub -o host.iso
  shoalctl iso build --mode compute --token-file join.token --bond bond0=eno1,eno2,mode=lacp --vlan 120 --net 10.20.0.11/24,gateway=10.20.0.1,dns=10.20.0.2 -o h1.iso
  shoalctl iso build --mode expert --kickstart my.ks --pxe /srv/tftp
  shoalctl iso build --mode compute --token-file join.token --base Rocky-9.5-x86_64-dvd.iso --packages rpms/ --disk sda --erase --ssh-key id_ed25519.pub -o h1.iso`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r.Mode, req.Mode = desired.Mode(mode), desired.Mode(mode)
			if err := vendor.fit(cmd, out); err != nil {
				return usage(err)
			}
			if out == "" && pxe == "" {
				return usage(errors.New("say where to: -o FILE, --pxe DIRECTORY or both"))
			}
			if err := (desired.HostMedium{Mode: req.Mode, ID: strings.Repeat("0", 16)}).Validate(); err != nil {
				return usage(fmt.Errorf("--mode: %w", err))
			}
			if tokenFile != "" {
				var err error
				if req.Token, err = readSecret(tokenFile); err != nil {
					return err
				}
			}
			if hashFile != "" {
				var err error
				if r.PasswordHash, err = readSecret(hashFile); err != nil {
					return err
				}
			}
			if file != "" {
				b, err := os.ReadFile(file)
				if err != nil {
					return fmt.Errorf("read the kickstart: %w", err)
				}
				for _, f := range recipeFlags {
					if cmd.Flags().Changed(f) {
						return usage(fmt.Errorf("--%s and --kickstart exclude each other: the file says it all", f))
					}
				}
				req.Kickstart, req.Name, req.Open = b, file, os.ReadFile
			} else {
				for _, k := range keyFiles {
					b, err := os.ReadFile(k)
					if err != nil {
						return fmt.Errorf("read the public key: %w", err)
					}
					r.Keys = append(r.Keys, strings.Split(strings.TrimSpace(string(b)), "\n")...)
				}
				if vendor.base != "" && !cmd.Flags().Changed("lang") {
					r.Lang = "en_US.UTF-8" // not all releases have C.UTF-8
				}
				text, err := r.Kickstart()
				if err != nil {
					return usage(err)
				}
				req.Kickstart, req.Name = []byte(text), "the kickstart that follows from the flags"
				if len(r.Keys) == 0 && r.PasswordHash == "" {
					a.tell("warning: nobody will be able to log in to the host: neither --ssh-key nor --root-password-hash-file is given\n")
				}
			}
			if req.Token == "" && req.Mode != desired.ModeExpert {
				a.tell("warning: the host will not enrol by itself: no --token-file is given\n")
			}
			if vendor.base != "" {
				return a.repackMedium(cmd, req, vendor, out)
			}
			return a.writeMedium(cmd, req, image, out, pxe)
		},
	}
	f := cmd.Flags()
	f.StringVar(&mode, "mode", "", "management (controller and agent), compute (agent), storage (agent and NFS server) or expert (base system only)")
	f.StringVar(&tokenFile, "token-file", "", "file with the join token that hosts enrol with, from shoalctl host token create; - for standard input")
	f.StringVar(&file, "kickstart", "", "kickstart file, instead of the flags that follow")
	f.StringArrayVar(&r.Disks, "disk", nil, "disk to install to: a name, serial=, path= or size>=; twice for a mirror")
	f.BoolVar(&r.Erase, "erase", false, "the disk may lose what it holds")
	f.StringVar(&r.Hostname, "hostname", "", "host name")
	f.StringVar(&r.Net, "net", "dhcp", "dhcp, or ADDRESS/BITS[,gateway=A][,dns=A+A][,mtu=N]")
	f.StringVar(&r.NIC, "nic", "", "network interface: a name, a MAC or link, the first one with a cable (default link)")
	f.StringVar(&r.Bond, "bond", "", "bond instead of one interface: NAME=NIC,NIC[,mode=lacp|active-backup|…]")
	f.IntVar(&r.VLAN, "vlan", 0, "VLAN on the interface or bond that has the address")
	f.StringArrayVar(&keyFiles, "ssh-key", nil, "file with public keys that may log in as root")
	f.StringVar(&hashFile, "root-password-hash-file", "", "file with the hash of root's password, from: openssl passwd -6 (default: no password)")
	f.StringVar(&r.Timezone, "timezone", "Etc/UTC", "time zone")
	f.StringVar(&r.Lang, "lang", "C.UTF-8", "locale")
	f.StringVar(&r.Keyboard, "keyboard", "us", "keyboard layout")
	f.StringArrayVar(&r.NTP, "ntp", nil, "time server")
	f.StringArrayVar(&r.Args, "arg", nil, "kernel argument of the installed system")
	f.StringArrayVar(&req.Args, "boot-arg", nil, "kernel argument of the installer itself, beside what it has anyway")
	f.IntVar(&req.MenuSeconds, "menu-seconds", 5, "how long the boot menu waits")
	f.StringVar(&image, "image", first(a.Getenv("SHOAL_INSTALL_IMAGE"), defaultImage), "installation image")
	f.StringVar(&vendor.base, "base", "", "a vendor's installation DVD to put everything onto, instead of the installation image")
	f.StringVar(&vendor.rpms, "packages", "", "with --base: directory of RPM packages that the kickstart may install beside those of the DVD")
	f.StringVar(&vendor.programs, "programs", "", "with --base: directory with shoal-agent, shoal-controller and shoalctl (default: where this shoalctl is)")
	f.StringVarP(&out, "output", "o", "", "ISO file to write")
	f.StringVar(&pxe, "pxe", "", "directory to write the files of a network start to")
	return cmd
}

// recipeFlags are what a kickstart file says instead.
var recipeFlags = []string{"disk", "erase", "hostname", "net", "nic", "bond", "vlan", "ssh-key", "root-password-hash-file", "timezone", "lang", "keyboard", "ntp", "arg"}

func (a *App) writeMedium(cmd *cobra.Command, req iso.Request, image, out, pxe string) error {
	f, err := os.Open(image)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is no installation image %s: make one with ./scripts/task iso-image, or name it with --image", image)
	}
	if err != nil {
		return fmt.Errorf("open the installation image: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at the installation image: %w", err)
	}
	m, err := iso.New(f, info.Size(), req)
	if err != nil {
		return usage(err)
	}
	if req.Open != nil { // what the flags make has lines for Anaconda that nobody asked for
		for _, n := range m.Notes {
			a.tell("note: %s\n", n)
		}
	}
	if out != "" {
		if err := m.WriteISO(cmd.Context(), out); err != nil {
			return err
		}
	}
	if pxe != "" {
		if err := m.WritePXE(cmd.Context(), pxe); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(a.Out, m.ID())
	return err
}

// vendorFlags are the flags of iso build that are about a vendor's medium.
type vendorFlags struct{ base, rpms, programs string }

// fit refuses flags that do not go together.
func (v *vendorFlags) fit(cmd *cobra.Command, out string) error {
	for _, name := range []string{"packages", "programs"} {
		if v.base == "" && cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s goes with --base", name)
		}
	}
	if v.base == "" {
		return nil
	}
	for _, name := range []string{"image", "pxe"} {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s and --base exclude each other", name)
		}
	}
	if out == "" {
		return errors.New("say where to: -o FILE")
	}
	if v.programs == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("--programs: %w", err)
		}
		v.programs = filepath.Dir(self)
	}
	return nil
}

// repackMedium puts a request onto a vendor's medium.
func (a *App) repackMedium(cmd *cobra.Command, req iso.Request, from vendorFlags, out string) error {
	f, err := os.Open(from.base)
	if err != nil {
		return fmt.Errorf("open the vendor's medium: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("look at the vendor's medium: %w", err)
	}
	if target, err := os.Stat(out); err == nil && os.SameFile(info, target) {
		return usage(errors.New("-o names the vendor's medium itself"))
	}
	v, err := iso.OpenVendor(f, info.Size())
	if err != nil {
		return usage(fmt.Errorf("--base %s: %w", from.base, err))
	}
	request := iso.VendorRequest{Request: req, Programs: from.programs, RPMs: from.rpms}
	if req.Open == nil { // a kickstart of the operator's says itself which packages
		request.Install = v.VendorPackages(req.Mode)
	}
	m, err := v.Repack(from.base, request)
	if err != nil {
		return usage(err)
	}
	for _, n := range m.Notes {
		a.tell("note: %s\n", n)
	}
	if err := m.Write(cmd.Context(), out); err != nil {
		return fmt.Errorf("repack %s: %w", from.base, err)
	}
	_, err = fmt.Fprintf(a.Out, "%s: %s, label %s\n", out, v.Product, v.Label)
	return err
}

func (a *App) isoCheckCommand() *cobra.Command {
	var release string
	cmd := &cobra.Command{
		Use: "check KICKSTART", Short: "Check a kickstart file as the installer does", Args: cobra.ExactArgs(1),
		Example: "  shoalctl iso check my.ks\n  shoalctl iso check --rhel 9 my.ks",
		Long: `Report every line that the installer would refuse, and what it would leave out. What depends on the machine, such as its disks, shows there only.

With --rhel the installer is Anaconda of that release of the RHEL family, as on a medium made with iso build --base: what differs between the releases is put
into its words, which is reported, and the rest is checked as ksvalidator does.`,
		RunE: func(_ *cobra.Command, args []string) error {
			b, err := os.ReadFile(args[0])
			if err != nil {
				return fmt.Errorf("read the kickstart: %w", err)
			}
			notes, err := checkKickstart(kickstart.Source{Name: args[0], Text: b, Open: os.ReadFile, Early: true}, release)
			if err != nil {
				return usage(err)
			}
			for _, n := range notes {
				a.tell("note: %s\n", n)
			}
			_, err = fmt.Fprintln(a.Out, "ok")
			return err
		},
	}
	cmd.Flags().StringVar(&release, "rhel", "", "check it for Anaconda of this release, 7 to 10")
	return cmd
}

// checkKickstart is by our installer's rules, or by those of a release of the RHEL family.
func checkKickstart(src kickstart.Source, release string) ([]kickstart.Note, error) {
	if release == "" {
		ks, err := kickstart.Parse(src)
		if err != nil {
			return nil, err
		}
		return ks.Notes, nil
	}
	r, err := anaconda.ParseRelease(release)
	if err != nil {
		return nil, fmt.Errorf("--rhel: %w", err)
	}
	adapted, err := anaconda.Adapt(src, r)
	if err != nil {
		return nil, err
	}
	return adapted.Notes, nil
}
