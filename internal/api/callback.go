package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/deepmed/anomaly/internal/jobs"
	"github.com/gofiber/fiber/v2"
)

const (
	// maxCallbackURL is the maximum length of a callback_url, in bytes.
	maxCallbackURL = 1 << 10
	// callbackTime is the longest time of one try to deliver a callback.
	callbackTime = 10 * time.Second
	// noCallbacks is the value of Options.CallbackHosts that allows none.
	noCallbacks = "none"
)

// errCallbackAddress is returned for a callback to an address that no client may make
// the service call.
var errCallbackAddress = errors.New("callbacks to this address are not allowed")

// checkCallback returns a problem if the service does not call a URL. A service that
// calls any URL can be made to send requests to hosts that its clients do not reach.
func (s *Server) checkCallback(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return badRequest("The field callback_url must be an http or https URL without a user name")
	}
	hosts := s.options.CallbackHosts
	if len(hosts) > 0 && !slices.Contains(hosts, strings.ToLower(u.Hostname())) {
		return &problem{fiber.StatusForbidden, fmt.Sprintf("This service does not call the host of callback_url, %.100q: it was started with other values of --callback-host", u.Hostname())}
	}
	if ip, err := netip.ParseAddr(u.Hostname()); err == nil && !allowedCallback(ip) {
		return badRequest("The field callback_url has an address to which callbacks are not allowed")
	}
	return nil
}

// allowedCallback reports whether a callback may be sent to an address. Link-local
// addresses have the credentials of machines in clouds.
func allowedCallback(ip netip.Addr) bool {
	ip = ip.Unmap()
	return ip.IsValid() && !ip.IsLinkLocalUnicast() && !ip.IsMulticast() && !ip.IsUnspecified() && ip != netip.MustParseAddr("fd00:ec2::254") && ip != netip.MustParseAddr("100.100.100.200")
}

// callbackClient sends callbacks. It follows no redirect, and checks the address that
// it connects to: the name of a host may have another address than before.
var callbackClient = &http.Client{
	Timeout:       callbackTime,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: (&net.Dialer{Timeout: callbackTime, Control: func(_, address string, _ syscall.RawConn) error {
			at, err := netip.ParseAddrPort(address)
			if err != nil || !allowedCallback(at.Addr()) {
				return fmt.Errorf("%w: %s", errCallbackAddress, address)
			}
			return nil
		}}).DialContext,
	},
}

// callBack sends a job that has ended to its callback URL, as GET /jobs/{id} answers it.
func callBack(ctx context.Context, url string, j jobs.Job) error {
	body, err := json.Marshal(j)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	r.Header.Set(fiber.HeaderContentType, fiber.MIMEApplicationJSON)
	r.Header.Set(fiber.HeaderUserAgent, ServiceName)
	res, err := callbackClient.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("the callback was answered with status %d", res.StatusCode)
	}
	return nil
}
