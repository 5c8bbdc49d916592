(module
  (memory (export "memory") 1)
  (func $main (export "_start") (local $i i32)
    (loop $again
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (block $other
        (br_table $again $other $again (i32.and (local.get $i) (i32.const 3))))
      (br $again))))
