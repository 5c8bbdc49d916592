(module
  (memory (export "memory") 1)
  (type $plain (func))
  (table funcref (elem $other $main))
  (func $other
    (return_call_indirect (type $plain) (i32.const 1)))
  (func $main (export "_start")
    (return_call_indirect (type $plain) (i32.const 0))))
