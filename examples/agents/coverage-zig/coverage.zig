//! coverage: a judge. It scores an output by how much of the input it keeps.
//!
//! Input   a judge's input: {"input": "...", "output": "..."}, both texts.
//! Output  a number from 0 to 1, six decimals: the share of the input's distinct words that the output contains;
//!         1 if the input has none.
//! Word    a run of ASCII letters, ASCII digits and bytes over 127. ASCII letters are lower-cased.
//! Fails   exit code 1 and one line on stderr for any other input, also for `input_base64` and `output_base64`.

const std = @import("std");

const Read = struct { input: []const u8, output: []const u8 };

pub fn main(init: std.process.Init) !void {
    const memory = init.arena.allocator();
    var input_buffer: [4096]u8 = undefined;
    var output_buffer: [64]u8 = undefined;
    var input = std.Io.File.stdin().readerStreaming(init.io, &input_buffer);
    var output = std.Io.File.stdout().writerStreaming(init.io, &output_buffer);

    const text = try input.interface.allocRemaining(memory, .unlimited);
    const read = try std.json.parseFromSliceLeaky(Read, memory, text, .{});
    var asked = try words(memory, read.input);
    const given = try words(memory, read.output);

    var kept: usize = 0;
    var word = asked.keyIterator();
    while (word.next()) |found| {
        if (given.contains(found.*)) kept += 1;
    }
    const millionths = if (asked.count() == 0) 1_000_000 else kept * 1_000_000 / asked.count();
    try output.interface.print("{d}.{d:0>6}\n", .{ millionths / 1_000_000, millionths % 1_000_000 });
    try output.interface.flush();
}

/// The distinct words of a text.
fn words(memory: std.mem.Allocator, text: []const u8) !std.StringHashMapUnmanaged(void) {
    const lower = try std.ascii.allocLowerString(memory, text);
    var found: std.StringHashMapUnmanaged(void) = .empty;
    var start: usize = 0;
    for (0..lower.len + 1) |at| {
        if (at < lower.len and (std.ascii.isAlphanumeric(lower[at]) or lower[at] > 127)) continue;
        if (at > start) try found.put(memory, lower[start..at], {});
        start = at + 1;
    }
    return found;
}
