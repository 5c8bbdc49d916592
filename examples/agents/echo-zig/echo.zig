//! echo: copies its input to its output.
//!
//! Input   any bytes, text or not.
//! Output  the same bytes.
//! Fails   exit code 1 and one line on stderr when a read or a write fails.

const std = @import("std");

pub fn main(init: std.process.Init) !void {
    var input_buffer: [4096]u8 = undefined;
    var output_buffer: [4096]u8 = undefined;
    var input = std.Io.File.stdin().readerStreaming(init.io, &input_buffer);
    var output = std.Io.File.stdout().writerStreaming(init.io, &output_buffer);

    _ = try input.interface.streamRemaining(&output.interface);
    try output.interface.flush();
}
